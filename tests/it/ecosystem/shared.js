exports.names = ['users', 'orders'];
exports.shared = { max_restarts: 5, restart_delay: 250, exp_backoff_restart_delay: 100, ignore_watch: ['node_modules', '*.log'] };
