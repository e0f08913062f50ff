"""Send usage to Tallybook and read entitlements from it."""

from tallybook_sdk.aio import AsyncUsageProducer as AsyncUsageProducer
from tallybook_sdk.delivery import BufferFull as BufferFull
from tallybook_sdk.delivery import Delivery as Delivery
from tallybook_sdk.delivery import NotCorrected as NotCorrected
from tallybook_sdk.delivery import NotDelivered as NotDelivered
from tallybook_sdk.delivery import Unreachable as Unreachable
from tallybook_sdk.event import InvalidEvent as InvalidEvent
from tallybook_sdk.event import UsageEvent as UsageEvent
from tallybook_sdk.event import new_id as new_id
from tallybook_sdk.producer import UsageProducer as UsageProducer
from tallybook_sdk.published_spread import PublishedSpread as PublishedSpread
from tallybook_sdk.spool import Fsync as Fsync
from tallybook_sdk.spool import SpoolUnusable as SpoolUnusable
from tallybook_sdk.spread import Spread as Spread
