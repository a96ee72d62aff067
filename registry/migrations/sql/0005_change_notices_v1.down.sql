DROP TRIGGER server_tools_change_notice_truncate ON server_tools;
DROP TRIGGER server_tools_change_notice_delete ON server_tools;
DROP TRIGGER server_tools_change_notice_insert ON server_tools;
DROP TRIGGER server_tools_change_notice ON server_tools;
DROP TRIGGER mcp_servers_change_notice_truncate ON mcp_servers;
DROP TRIGGER mcp_servers_change_notice_rows ON mcp_servers;
DROP TRIGGER mcp_servers_change_notice ON mcp_servers;
DROP TRIGGER tenants_change_notice ON tenants;
DROP FUNCTION registry_change_notice_v1();
