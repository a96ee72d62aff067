DROP FUNCTION get_tenant_usage_summary(text, integer);
