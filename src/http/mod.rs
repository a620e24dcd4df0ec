//! Talks: front doors, SSE, errors, limits, health. Touches no store and no device: everything goes through service.
