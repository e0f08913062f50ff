-- How a customer reads amounts, such as de-DE; empty for plain figures.
ALTER TABLE app.customer_profile ADD COLUMN locale text NOT NULL DEFAULT '';
