from django.contrib.sessions.middleware import SessionMiddleware as SessionMiddleware
