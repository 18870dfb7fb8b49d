// One application, written as a module in a file that Node takes for CommonJS.
export default {
  script: './app.js',
  vizion: false,
  filter: (line) => line,
  source_map_support: true,
  min_uptime: '10s',
  log_type: 'json',
  error_file: 'NULL',
};
