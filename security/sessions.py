from django.contrib.sessions.backends.cache import SessionStore as SessionStore
