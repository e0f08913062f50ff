"""What can be read: tables, how events change them, and the queries over them."""
