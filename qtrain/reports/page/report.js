'use strict';
// Search, order, opening layers within the table, and values under the pointer.
(() => {
  const root = document.documentElement;
  const make = (kind, values = {}) => Object.assign(document.createElement(kind), values);
  root.classList.add('script');

  const tip = document.body.appendChild(make('div', {id: 'tip', hidden: true}));
  tip.setAttribute('aria-hidden', 'true');  // every value is in a table as well
  const show = (text, event) => {
    tip.textContent = text;
    tip.hidden = false;
    const x = Math.min(event.clientX + 12, root.clientWidth - tip.offsetWidth - 4);
    const above = event.clientY + 18 + tip.offsetHeight > root.clientHeight;
    const y = above ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18;
    tip.style.transform = `translate(${Math.max(x, 4)}px, ${Math.max(y, 4)}px)`;
  };
  const hide = () => { tip.hidden = true; };

  const heat = document.getElementById('heat');
  if (heat) network(heat);
  for (const svg of document.querySelectorAll('svg[data-plot]')) chart(svg);

  function network(table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const roles = heads.slice(1).map((head) => head.textContent);
    const names = rows.map((row) => row.cells[0].textContent);
    // a NaN is the worst; a role that a layer lacks comes last
    const value = (cell) => {
      const text = cell.textContent;
      if (text === '') return Infinity;
      return text === 'NaN' ? -Infinity : text.endsWith('inf') ? Number(text.replace('inf', 'Infinity')) : Number(text);
    };
    const keys = rows.map((row) => [...row.cells].slice(1).map(value));
    const opened = new Map();

    const toggles = rows.map((row, i) => {
      const link = row.cells[0].querySelector('a');
      const button = make('button', {type: 'button'});
      button.append(...link.childNodes);
      button.setAttribute('aria-expanded', 'false');
      link.replaceWith(button);
      button.addEventListener('click', () => toggle(i, !opened.has(i)));
      return button;
    });

    function toggle(i, open) {
      if (open === opened.has(i)) return;
      const home = document.getElementById(`layer-${i}`);
      if (open) {
        const inside = make('tr', {className: 'inside', id: `inside-${i}`});
        const cell = inside.appendChild(make('td', {colSpan: heads.length}));
        cell.append(home.querySelector('.body'));
        rows[i].after(inside);
        opened.set(i, inside);
        toggles[i].setAttribute('aria-controls', inside.id);
      } else {
        home.append(opened.get(i).querySelector('.body'));
        opened.get(i).remove();
        opened.delete(i);
        toggles[i].removeAttribute('aria-controls');
      }
      rows[i].classList.toggle('open', open);
      toggles[i].setAttribute('aria-expanded', String(open));
    }

    function jump(i) {
      if (rows[i].hidden) { filter.value = ''; search(); }
      toggle(i, true);
      rows[i].scrollIntoView({block: 'center'});
      toggles[i].focus({preventScroll: true});
    }

    const controls = document.querySelector('.controls');
    const filter = document.getElementById('filter');
    const order = document.getElementById('order');
    const shown = document.getElementById('shown');
    controls.hidden = false;
    controls.addEventListener('submit', (event) => event.preventDefault());

    function search() {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, i) => {
        const name = names[i].toLowerCase();
        row.hidden = !words.every((word) => name.includes(word));
        if (opened.has(i)) opened.get(i).hidden = row.hidden;
        count += !row.hidden;
      });
      const noun = rows.length === 1 ? 'layer' : 'layers';
      shown.textContent = words.length ? `${count} of ${rows.length} ${noun}` : `${rows.length} ${noun}`;
    }
    filter.addEventListener('input', search);

    function arrange(compare) {
      const places = rows.map((_, i) => i).sort((a, b) => compare(a, b) || a - b);
      body.append(...places.flatMap((i) => opened.has(i) ? [rows[i], opened.get(i)] : [rows[i]]));
    }
    const less = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const marked = (head, direction) => {
      for (const other of heads) other.removeAttribute('aria-sort');
      if (head) head.setAttribute('aria-sort', direction);
    };
    order.addEventListener('change', () => {
      marked(null);
      if (order.value === 'worst') arrange((a, b) => less(Math.min(...keys[a]), Math.min(...keys[b])));
      else arrange(() => 0);
    });
    heads.forEach((head, column) => {
      const button = make('button', {type: 'button', title: 'sort'});
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => {
        const down = head.getAttribute('aria-sort') === 'ascending';
        marked(head, down ? 'descending' : 'ascending');
        const key = (i) => (column ? keys[i][column - 1] : names[i]);
        arrange((a, b) => (down ? less(key(b), key(a)) : less(key(a), key(b))));
      });
    });

    const places = new Map(rows.map((_, i) => [`#layer-${i}`, i]));
    document.addEventListener('click', (event) => {
      const link = event.target.closest('a[href^="#layer-"]');
      if (!link || !places.has(link.hash)) return;
      event.preventDefault();
      jump(places.get(link.hash));
    });
    const follow = () => { if (places.has(location.hash)) jump(places.get(location.hash)); };
    addEventListener('hashchange', follow);
    addEventListener('load', () => setTimeout(follow));  // the browser's own move comes first

    const strip = document.querySelector('.strip svg');
    const under = (event) => {
      const box = strip.getBoundingClientRect();
      const part = (at, start, size, count) =>
        Math.min(Math.max(Math.floor((at - start) / size * count), 0), count - 1);
      return [part(event.clientX, box.left, box.width, rows.length),
        part(event.clientY, box.top, box.height, roles.length)];
    };
    strip.addEventListener('pointermove', (event) => {
      const [i, role] = under(event);
      const text = rows[i].cells[role + 1].textContent;
      show(`${names[i]}\n${roles[role]}: ${text ? `${text} dB` : 'not measured'}`, event);
    });
    strip.addEventListener('pointerleave', hide);
    strip.addEventListener('click', (event) => jump(under(event)[0]));
  }

  function chart(svg) {
    const plot = JSON.parse(svg.dataset.plot);
    const [low, high, left, right] = plot.x;
    const steps = [...new Set(plot.lines.flatMap(([, points]) => points.map(([x]) => x)))];
    steps.sort((a, b) => a - b);
    const cursor = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    cursor.setAttribute('class', 'cursor');
    svg.append(cursor);
    svg.addEventListener('pointermove', (event) => {
      const box = svg.getBoundingClientRect();
      const view = svg.viewBox.baseVal;
      const at = (event.clientX - box.left) / box.width * view.width;
      const wanted = low + (at - left) / (right - left) * (high - low);
      const x = steps.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
      const place = left + (x - low) / (high - low) * (right - left);
      cursor.setAttribute('d', `M${place} 0V${view.height - 34}`);
      const lines = plot.lines.flatMap(([label, points]) =>
        points.filter(([other]) => other === x).slice(0, 1).map(([, y]) => `${label}: ${y}`));
      show([`${plot.unit} ${x}`, ...lines].join('\n'), event);
    });
    svg.addEventListener('pointerleave', () => { hide(); cursor.removeAttribute('d'); });
  }
})();
