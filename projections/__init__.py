"""What can be read: tables that follow from the logs and nothing else. They are rebuilt, never migrated."""
