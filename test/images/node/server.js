// Requires what a middle-sized service requires, compiles a component and answers a
// page that is computed by many packages.
const axios = require('axios');
const babel = require('@babel/core');
const cheerio = require('cheerio');
const compression = require('compression');
const dateFns = require('date-fns');
const ejs = require('ejs');
const express = require('express');
const graphql = require('graphql');
const helmet = require('helmet');
const joi = require('joi');
const lodash = require('lodash');
const luxon = require('luxon');
const { marked } = require('marked');
const morgan = require('morgan');
const pug = require('pug');
const React = require('react');
const { renderToString } = require('react-dom/server');
const rxjs = require('rxjs');
const uuid = require('uuid');
const winston = require('winston');

const source = 'module.exports = ({ n, children }) => <ul>{[...Array(n).keys()].map(i => <li key={i}>{i ** 2}</li>)}{children}</ul>;';
const { code } = babel.transformSync(source, {
  cwd: __dirname, presets: ['@babel/preset-env', '@babel/preset-react'], filename: 'list.jsx', babelrc: false, configFile: false,
});
const compiled = { exports: {} };
new Function('module', 'React', code)(compiled, React);

const logger = winston.createLogger({ level: 'warn', transports: [new winston.transports.Console()] });
const schema = graphql.buildSchema('type Query { answer: Int }');
const input = joi.object({ n: joi.number().integer().min(1).max(100).default(5) });

const app = express();
app.use(helmet(), compression(), morgan('tiny', { stream: { write: (line) => logger.debug(line) } }));
app.get('/', async (req, res) => {
  const { n } = joi.attempt(req.query, input);
  const list = cheerio.load(renderToString(React.createElement(compiled.exports, { n })));
  const squares = list('li').toArray().map((e) => Number(list(e).text()));
  const answer = (await graphql.graphql({ schema, source: '{ answer }', rootValue: { answer: 42 } })).data.answer;
  const sum = await rxjs.lastValueFrom(rxjs.from(squares).pipe(rxjs.reduce((a, b) => a + b, 0)));
  const day = luxon.DateTime.fromISO('2024-02-28').plus({ days: 1 }).toISODate();
  const week = dateFns.format(dateFns.addDays(new Date(2024, 1, 28), 2), 'yyyy-MM-dd');
  const title = marked.parse('*app*').trim() + pug.render('b= x', { x: lodash.kebabCase('Node App') });
  res.send(ejs.render('<%- title %> sum <%= sum %> answer <%= answer %> days <%= day %> <%= week %> id <%= id %> agent <%= agent %>\n', {
    title, sum, answer, day, week, id: uuid.v5('app', uuid.v5.DNS), agent: typeof axios.get,
  }));
});
app.listen(Number(process.env.PORT || 8080), '127.0.0.1');
