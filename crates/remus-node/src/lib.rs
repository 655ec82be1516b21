//! One node: the services, topics and listeners behind `remus up`.
