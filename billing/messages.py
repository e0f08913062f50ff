"""Every command and event there is, by name; one Avro record each."""

from __future__ import annotations

from typing import Any, Final

from billing import backfilling, catalog, customer, invoice, payment, plan_change, prepaid, subscription, tenant
from billing.envelope import CommandResult
from billing.metering import RejectedUsage, UsageAmended, UsageBatch, UsageControl, UsageVoided

COMMANDS: Final[dict[str, type[Any]]] = {
    each.__name__: each
    for each in (
        tenant.RegisterTenant,
        tenant.ChangeTenantSettings,
        tenant.AdvanceClock,
        tenant.SpreadUsage,
        backfilling.BackfillMeter,
        catalog.PublishPriceBook,
        customer.CreateCustomer,
        customer.AttachPaymentMethod,
        customer.SetJurisdiction,
        customer.RedeemCoupon,
        customer.SetPriceOverride,
        prepaid.GrantCredit,
        prepaid.ExpireCredit,
        subscription.CreateSubscription,
        subscription.ActivateSubscription,
        subscription.CloseBillingPeriod,
        plan_change.ChangePlan,
        plan_change.MigrateSubscription,
        plan_change.AddAddOn,
        plan_change.RemoveAddOn,
        plan_change.ChangeBillingAnchor,
        plan_change.ChangeBillingZone,
        subscription.CancelSubscription,
        invoice.IssueInvoice,
        payment.StartPaymentAttempt,
        payment.RecordPaymentSuccess,
        payment.RecordPaymentDecline,
        payment.RecordPaymentUnknown,
        payment.RecordManualPayment,
    )
}

EVENTS: Final[dict[str, type[Any]]] = {
    each.__name__: each
    for each in (
        tenant.TenantRegistered,
        tenant.TenantSettingsChanged,
        tenant.ClockAdvanced,
        tenant.UsageSpreadSet,
        backfilling.MeterBackfillOrdered,
        catalog.PriceBookPublished,
        customer.CustomerCreated,
        customer.PaymentMethodAttached,
        customer.JurisdictionSet,
        customer.CouponRedeemed,
        customer.CustomerCredited,
        customer.PriceOverrideSet,
        prepaid.CreditGranted,
        prepaid.CreditExpired,
        subscription.SubscriptionCreated,
        subscription.SubscriptionActivated,
        subscription.BillingPeriodClosed,
        plan_change.SubscriptionPlanChanged,
        plan_change.SubscriptionMigrated,
        plan_change.AddOnAdded,
        plan_change.AddOnRemoved,
        plan_change.BillingAnchorChanged,
        plan_change.BillingZoneChanged,
        subscription.SubscriptionCanceled,
        subscription.SubscriptionEnded,
        invoice.InvoiceFinalized,
        invoice.InvoicePaid,
        invoice.InvoiceOmitted,
        payment.PaymentDue,
        payment.PaymentAttemptStarted,
        payment.PaymentSucceeded,
        payment.PaymentDeclined,
        payment.PaymentOutcomeUnknown,
        payment.DunningExhausted,
    )
}

STREAMS: Final[dict[str, tuple[type[Any], ...]]] = {
    "commands": tuple(COMMANDS.values()),
    "events": tuple(EVENTS.values()),
    "results": (CommandResult,),
    "usage": (UsageBatch, UsageControl, UsageVoided, UsageAmended),
    "rejected": (RejectedUsage,),
}
