// A web server and a worker, and how another tool would deploy them.
module.exports = {
  apps: [
    {
      name: 'shop',
      script: 'server.js',
      cwd: './shop',
      instances: 'max',
      exec_mode: 'cluster_mode',
      wait_ready: true,
      listen_timeout: 10000,
      kill_timeout: '5s',
      env: { PORT: 3000, NODE_ENV: 'development', DEBUG: true, EMPTY: '', FEATURES: { cart: ['a', 'b'] } },
      env_production: { NODE_ENV: 'production', DEBUG: null },
    },
    {
      name: 'mail',
      script: './mail.py',
      interpreter: '/usr/bin/python3',
      interpreter_args: '-u -W ignore',
      args: "--queue 'outgoing mail'",
      autorestart: false,
      max_memory_restart: '300M',
      merge_logs: true,
    },
  ],
  deploy: { production: { user: 'node', host: ['192.0.2.1'], ref: 'origin/main' } },
};
