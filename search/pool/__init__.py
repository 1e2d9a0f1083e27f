"""Who trains where: the driver, its workers, and what is shown while they train."""
