-- A tenant's id from its id or slug, as text. Called by: get_tenant_usage_summary.
-- plpgsql, because SQL cannot raise: an unknown tenant must not look like one without requests.
CREATE FUNCTION resolve_tenant(tenant text) RETURNS uuid
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY INVOKER AS $$
DECLARE
    found uuid;
BEGIN
    IF tenant ~* '^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$' THEN
        SELECT t.id INTO found FROM tenants t WHERE t.id = tenant::uuid;
    END IF;
    IF found IS NULL THEN
        SELECT t.id INTO found FROM tenants t WHERE t.slug = tenant;
    END IF;
    IF found IS NULL THEN
        RAISE EXCEPTION '% is neither the id nor the slug of a tenant', quote_nullable(tenant)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT id, slug FROM tenants lists them.';
    END IF;
    RETURN found;
END
$$;
COMMENT ON FUNCTION resolve_tenant(text) IS
    'The id of the tenant with this id or slug; an error when there is none.';
