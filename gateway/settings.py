"""Django's settings, all of them from the environment (see README, Configuration)."""

from pathlib import Path

from gateway import env
from gateway.logs import logging_config
from registry.db.embedded import local_cluster

BASE_DIR = Path(__file__).resolve().parent.parent
env.load_env_file(BASE_DIR / ".env")

# Everything the gateway keeps on this machine: the embedded database, secrets, what `up` prints.
LOCAL_DIR = env.read("GATEWAY_LOCAL_DIR", Path, BASE_DIR / ".local").resolve()

DEBUG = env.read("DEBUG", env.truth, default=False)
LOGGING = logging_config(
    level=env.read("LOG_LEVEL", env.log_level, "INFO"),
    style=env.read("LOG_FORMAT", env.log_format, "text"),
)
_secrets = LOCAL_DIR / "secrets"
SECRET_KEY, _own_key = env.secret("SECRET_KEY", folder=_secrets)
_keys, _own_keys = env.secret("ENCRYPTION_KEYS", folder=_secrets)
ENCRYPTION_KEYS = env.parsed("ENCRYPTION_KEYS", _keys, env.fernet_keys)
SECRETS_ARE_OWN = _own_key and _own_keys  # `serve` and `worker` insist on it without DEBUG

ALLOWED_HOSTS = env.read("ALLOWED_HOSTS", env.words, ["localhost", "127.0.0.1", "[::1]"])
GATEWAY_ALLOWED_ORIGINS: list[str] = env.read("GATEWAY_ALLOWED_ORIGINS", env.origins, [])
# Other addresses under which the admin itself is opened. Not the origins above: what may call
# /mcp should not be able to post the admin's forms.
CSRF_TRUSTED_ORIGINS: list[str] = env.read("CSRF_TRUSTED_ORIGINS", env.origins, [])

# ---------------------------------------------------------------- the data plane
GATEWAY_ALLOW_PRIVATE_UPSTREAMS = env.read(
    "GATEWAY_ALLOW_PRIVATE_UPSTREAMS", env.truth, default=False
)
GATEWAY_ALLOW_STDIO = env.read("GATEWAY_ALLOW_STDIO", env.truth, default=False)
GATEWAY_MAX_REQUEST_BYTES = env.read("GATEWAY_MAX_REQUEST_BYTES", env.positive_int, 4 * 2**20)
GATEWAY_UPGRADE_PLAIN_KEYS = env.read("GATEWAY_UPGRADE_PLAIN_KEYS", env.truth, default=True)
# While PostgreSQL is away calls go on for so many seconds by what is remembered; 0: not at all.
GATEWAY_STALE_SECONDS = env.read("GATEWAY_STALE_SECONDS", env.natural, 300)
# Addresses of reverse proxies whose X-Forwarded-For is believed.
GATEWAY_TRUSTED_PROXIES: list[env.Network] = env.read("GATEWAY_TRUSTED_PROXIES", env.networks, [])
# Log rows while PostgreSQL is away, and audit rows until it has them.
GATEWAY_SPOOL_DIR = env.read("GATEWAY_SPOOL_DIR", env.folder, LOCAL_DIR / "spool")
GATEWAY_ARCHIVE_DIR = env.read("GATEWAY_ARCHIVE_DIR", env.folder, None)
GATEWAY_SPOOL_MAX_BYTES = env.read("GATEWAY_SPOOL_MAX_BYTES", env.positive_int, 512 * 2**20)
# Whether /metrics is for everybody who can reach it; else for keys with the scope `metrics`.
GATEWAY_METRICS_OPEN = env.read("GATEWAY_METRICS_OPEN", env.truth, default=False)
# A check waits this long for a server; above the second figure it calls the server degraded.
GATEWAY_HEALTH_TIMEOUT_MS = env.read("GATEWAY_HEALTH_TIMEOUT_MS", env.positive_int, 10_000)
GATEWAY_HEALTH_SLOW_MS = env.read("GATEWAY_HEALTH_SLOW_MS", env.positive_int, 2000)
# Days that rollups of calls keep their five minutes and their hours (and tools their days).
GATEWAY_ROLLUP_FINE_DAYS = env.read("GATEWAY_ROLLUP_FINE_DAYS", env.positive_int, 35)
GATEWAY_ROLLUP_HOURLY_DAYS = env.read("GATEWAY_ROLLUP_HOURLY_DAYS", env.positive_int, 400)

# ---------------------------------------------------------------- alerts
# Called after each good pass over the alerts: what watches in the database dies with it.
GATEWAY_HEARTBEAT_URL = env.read("GATEWAY_HEARTBEAT_URL", env.http_url, "")
# Where alerts' e-mails go out, such as smtp+tls://user:password@mail.example.org:587.
_no_mail: dict[str, object] = {}
globals().update(env.read("EMAIL_URL", env.mail, _no_mail))
EMAIL_TIMEOUT = 10  # seconds
DEFAULT_FROM_EMAIL = env.read("DEFAULT_FROM_EMAIL", str, "mcp-gateway@localhost")

# ---------------------------------------------------------------- PostgreSQL
# Without DATABASE_URL: the embedded one, which the command line starts when a command needs it.
DATABASE_IS_EMBEDDED = not env.read("DATABASE_URL", str, "")
_cluster = local_cluster(LOCAL_DIR)
_owners_url = _cluster.url("mcp_gateway")
# Set by the command line for `serve` and `worker`, which need no more than the application's role.
_login = env.read("GATEWAY_EMBEDDED_LOGIN", str, "")
_embedded_url = _cluster.url("mcp_gateway", user=_login) if _login else _owners_url


def _database(name: str, default: str) -> dict[str, object]:
    found = env.read(name, env.database, env.database(default))
    return {
        "ENGINE": "psqlextra.backend",
        "CONN_HEALTH_CHECKS": True,
        # A transaction pooler gives no session in which a cursor could live on.
        "DISABLE_SERVER_SIDE_CURSORS": True,
        **found,
        "OPTIONS": {
            "application_name": "mcp-gateway",
            "connect_timeout": 5,
            # Seconds, and milliseconds in the last one: a server that is gone without a word is
            # noticed. libpq passes them over where the connection is a Unix socket.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            # Milliseconds. Every statement that can block has an end. Compiling a statement costs
            # ten times what running one of ours does, and plans over many partitions look dear.
            "options": "-c statement_timeout=30000 -c lock_timeout=5000"
            " -c idle_in_transaction_session_timeout=30000 -c timezone=UTC -c jit=off",
            **found["OPTIONS"],
        },
    }


DATABASES = {"default": _database("DATABASE_URL", _embedded_url)}
# By this the spool knows whose rows it holds, also in a process that goes another way to it.
DATABASES["default"]["ADDRESS"] = f"{DATABASES['default']['HOST']}\n{DATABASES['default']['PORT']}"
# The same database past a transaction pooler, for what needs a session of its own.
DATABASE_DIRECT = (
    _database("DATABASE_DIRECT_URL", _embedded_url)
    if env.read("DATABASE_DIRECT_URL", str, "")
    else None
)
# Which declared indexes optimize_db sees to: all of them, or without those of the guide that the
# catalogue says are not worth their cost.
INDEX_PROFILE = env.read("INDEX_PROFILE", env.index_profile, "guide")
# A copy that answers queries: `optimize_db --advise` counts the scans of its indexes too.
DATABASE_REPLICA = (
    _database("DATABASE_REPLICA_URL", _embedded_url)
    if env.read("DATABASE_REPLICA_URL", str, "")
    else None
)
# How much time one new partition of a log covers; those that exist keep their size.
GATEWAY_PARTITION_DAYS = env.read("GATEWAY_PARTITION_DAYS", env.positive_int, 1)
# The same database as the tables' owner, who migrates and maintains. None: whoever the others name.
DATABASE_MAINTENANCE = (
    _database("DATABASE_MAINTENANCE_URL", _owners_url)
    if env.read("DATABASE_MAINTENANCE_URL", str, "") or (DATABASE_IS_EMBEDDED and _login)
    else None
)
POSTGRES_EXTRA_AUTO_EXTENSION_SET_UP = False  # hstore is not used; creating it needs rights

CACHES = {"default": env.read("CACHE_URL", env.cache, env.cache("locmem://"))}

# ---------------------------------------------------------------- Django
INSTALLED_APPS = [
    "django.contrib.postgres",  # before registry, which undoes part of it
    "gateway",
    "security",
    "monitoring",
    "registry",
    "servestatic",
    "unfold.apps.BasicAppConfig",
    "unfold.contrib.filters",
    "gateway.admin_config.GatewayAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "psqlextra",
    "gateway.job_queue.JobQueueConfig",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
]

MIDDLEWARE = [
    "gateway.middleware.RequestIDMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "gateway.middleware.TransactionMiddleware",
    "security.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "gateway.urls"
ASGI_APPLICATION = "gateway.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# Registry may not import monitoring, so its audit entries, figures and jobs go where these
# strings point.
AUDIT_WRITER = "monitoring.audit.audit_write"
METRICS_WRITER = "monitoring.logwriter.threads.metrics_write"
TASK_DEFERRER = "gateway.jobs.task_defer"
# What a log's api_key_id may stand for: models with a tenant_id and a key_prefix, by which pages
# name the key.
KEY_MODELS = ("security.EnhancedAPIKey", "security.APIKey")

AUTH_USER_MODEL = "security.User"
LOGIN_REDIRECT_URL = "admin:index"  # of who opens the login page itself
SESSION_ENGINE = "security.sessions"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.read(
    "GATEWAY_SECURE_COOKIES", env.truth, default=not DEBUG
)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SESSION_COOKIE_SECURE else None
SECURE_HSTS_SECONDS = env.read("GATEWAY_HSTS_SECONDS", env.natural, 0)
PASSWORD_HASHERS = ["security.passwords.YieldingHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
FORMAT_MODULE_PATH = "gateway.formats"

STATIC_URL = "/static/"
STATIC_ROOT = LOCAL_DIR / "static"
SERVESTATIC_USE_FINDERS = True  # no collectstatic step to forget; assets are read at start

# The queue's tasks are registered in one place, not found by module name.
PROCRASTINATE_AUTODISCOVER_MODULE_NAME = None
PROCRASTINATE_ON_APP_READY = "gateway.jobs.tasks_register"

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# ---------------------------------------------------------------- the admin's looks
UNFOLD = {
    "SITE_TITLE": "MCP Registry Gateway",
    "SITE_HEADER": "MCP Registry Gateway",
    "SITE_SYMBOL": "hub",
    "SITE_URL": None,
    "LOGIN": {"form": "security.signin.SignInForm"},
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": "gateway.admin_site.icon"},
    ],
    "SCRIPTS": ["gateway.admin_site.script"],
    "STYLES": ["gateway.admin_site.style"],
    "SHOW_BACK_BUTTON": True,
    "DASHBOARD_CALLBACK": "gateway.dashboard.overview.overview",
    "SIDEBAR": {"show_search": True, "navigation": "gateway.admin_site.sidebar"},
    "COLORS": {
        "primary": {
            "50": "oklch(98.4% .014 180.7)",
            "100": "oklch(95.3% .051 180.8)",
            "200": "oklch(91% .096 180.4)",
            "300": "oklch(85.5% .138 181.1)",
            "400": "oklch(77.7% .152 181.9)",
            "500": "oklch(70.4% .14 182.5)",
            "600": "oklch(52% .1 184.7)",
            "700": "oklch(45% .09 186.4)",
            "800": "oklch(40% .08 188.2)",
            "900": "oklch(36% .065 188.4)",
            "950": "oklch(27.7% .046 192.5)",
        },
    },
}

# ---------------------------------------------------------------- REST
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "security.api.authentication.APIKeyAuthentication",
        "security.api.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["security.api.permissions.HasScope"],
    "DEFAULT_PAGINATION_CLASS": "registry.api.pagination.NewestFirst",
    "DEFAULT_FILTER_BACKENDS": [
        "registry.api.filters.StrictFilterBackend",
        "security.api.permissions.ServerRules",
    ],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["registry.api.parsers.JSONParser"],
    "EXCEPTION_HANDLER": "registry.api.errors.handle",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "PAGE_SIZE": 50,
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "MCP Registry Gateway",
    "DESCRIPTION": "Servers, tools, keys, rules and monitoring data of the gateway.",
    "VERSION": "1",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "COMPONENT_SPLIT_REQUEST": True,  # what is written and never shown is in no answer's shape
    "PREPROCESSING_HOOKS": ["registry.api.schema.paths_without_slash"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "registry.api.schema.ids_documented",
        "registry.api.schema.refusals_documented",
        "registry.api.schema.bodies_closed",
    ],
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}
