"""Send usage to Tallybook and read entitlements from it."""
