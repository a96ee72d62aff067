DROP FUNCTION resolve_tenant(text);
