-- The rows go with their table.
ALTER TABLE request_tool_days RESET (fillfactor);
