import { cpus } from 'node:os';

const apps = [
  {
    name: 'pages',
    script: 'npm',
    args: ['run', 'start', '--', '--port=80'],
    namespace: 'web',
    watch: ['src', 'public'],
    ignore_watch: 'public/uploads',
    watch_delay: 500,
    instances: cpus().length > 0 ? 1 : 0,
    cron_restart: '0 3 * * *',
    stop_exit_codes: [0],
    time: true,
  },
];

export default { apps: await Promise.resolve(apps) };
