"""``verify-merge``: whether a merged model holds an adapter."""
