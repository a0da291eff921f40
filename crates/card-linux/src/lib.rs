//! A card made of real netdevs.
