// The answer in Node: alone, or as a worker of PM2's cluster. Where BACKLOG is empty the backlog is Node's own.

'use strict';

const http = require('node:http');

const number = process.pid % 1000;
const body = Buffer.from(`${`handled by worker ${number}, pid ${process.pid}\n`.padEnd(63, '.')}\n`);
const headers = { 'Content-Type': 'text/plain', 'Content-Length': body.length, 'X-Worker': number };
const server = http.createServer((request, response) => response.writeHead(200, headers).end(body));
server.keepAliveTimeout = 75_000;
server.listen({ host: process.env.HOST, port: Number(process.env.PORT), backlog: Number(process.env.BACKLOG ?? 4096) || undefined });
