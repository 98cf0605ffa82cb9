"""What runs centrally: coordinator, aggregation, gatekeeper, evaluation, registry and launcher."""
