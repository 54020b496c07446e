"""Many adapters: found, audited once each, kept in open files, shown and queried."""
