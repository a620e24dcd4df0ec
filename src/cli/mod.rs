//! One file per subcommand; parses flags, calls the rooms, prints for people.
