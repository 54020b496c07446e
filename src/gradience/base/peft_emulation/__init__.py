"""What PEFT would adapt, without PEFT: targets, shapes and token rows as the library resolves them."""
