"""The admin's pages of figures: the overview, and what the database is doing.

`window` says which stretch of time is shown, `overview` and `database` ask the questions and put
the answers into words, `charts` makes pictures of series, `views` are the pages themselves.
"""
