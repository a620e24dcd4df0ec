//! Settings: one struct per room; defaults < file < environment < flags; every fault reported at once. Reads no database and opens no port.
