"""Send usage to Tallybook and read entitlements from it."""

from tallybook_sdk.event import InvalidEvent as InvalidEvent
from tallybook_sdk.event import UsageEvent as UsageEvent
from tallybook_sdk.producer import Delivery as Delivery
from tallybook_sdk.producer import NotDelivered as NotDelivered
from tallybook_sdk.producer import Unreachable as Unreachable
from tallybook_sdk.producer import UsageProducer as UsageProducer
