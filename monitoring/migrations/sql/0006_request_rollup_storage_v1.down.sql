-- The tables go with their settings.
SELECT 1;
