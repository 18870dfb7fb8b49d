'use strict';
// The text of a row in a picture: its number, interval, runs and commands.
const value = document.getElementById('value');
for (const row of document.querySelectorAll('svg g')) {
  const title = row.querySelector('title');
  if (!title) continue;
  const text = title.textContent;
  // Without the browser's own tooltip above ours.
  title.remove();
  row.setAttribute('role', 'img');
  row.setAttribute('aria-label', text);
  const show = () => { value.textContent = text; value.hidden = false; };
  const hide = () => { value.hidden = true; };
  row.addEventListener('mouseenter', show);
  row.addEventListener('focus', show);
  row.addEventListener('click', show);
  row.addEventListener('mouseleave', hide);
  row.addEventListener('blur', hide);
}

// `1,234 [1,200, 1,300]` sorts by its first number, what is no number behind all of them by its text.
const number = (text) => parseFloat(text.replace(/\u2212/g, '-').replace(/,(?=\d{3})/g, '').replace('<', ''));
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) && isNaN(y)) return a.localeCompare(b);
  return isNaN(x) ? 1 : isNaN(y) ? -1 : x - y;
};
for (const table of document.querySelectorAll('table')) {
  const heads = [...table.querySelectorAll('th')];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const isUp = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', isUp ? 'ascending' : 'descending');
      const body = table.tBodies[0];
      const text = (row) => row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => (isUp ? 1 : -1) * compare(text(a), text(b)));
      body.append(...rows);
    });
  });
}

// On paper nothing can be unfolded.
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach((part) => { part.open = true; }));
