// Click on a picture: the cosine of every patch, in all pictures, with the one clicked. Vectors are bytes in base64.
{
  const box = document.currentScript.parentElement, given = box.dataset;
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const vectors = new Int8Array(bytes(given.vectors).buffer), colours = bytes(given.colours);
  const rows = +given.rows, columns = +given.columns, patches = rows * columns, width = +given.width;
  const canvases = [...box.querySelectorAll("canvas")], said = box.querySelector("output");
  let maps = [];

  const cosine = (a, b) => {
    let sum = 0;
    for (let k = 0; k < width; k++) sum += vectors[a * width + k] * vectors[b * width + k];
    return sum * given.scale ** 2;
  };

  // As the pictures above: from the least value to the 99th percentile, over the grey picture.
  const draw = (canvas, values) => {
    const sorted = [...values].sort((a, b) => a - b), low = sorted[0];
    const high = sorted[Math.round(0.99 * (sorted.length - 1))];
    const small = new ImageData(columns, rows);
    values.forEach((value, place) => {
      const share = Math.min(1, Math.max(0, (value - low) / Math.max(high - low, 1e-12)));
      const from = 3 * Math.round(255 * share);
      small.data.set([colours[from], colours[from + 1], colours[from + 2], 179], 4 * place);
    });
    const grid = document.createElement("canvas"), pen = canvas.getContext("2d");
    [grid.width, grid.height] = [columns, rows];
    grid.getContext("2d").putImageData(small, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(grid, 0, 0, canvas.width, canvas.height);
  };

  const show = (image, row, column) => {
    const clicked = image * patches + row * columns + column;
    maps = canvases.map((_, i) => Array.from({ length: patches }, (_, j) => cosine(clicked, i * patches + j)));
    canvases.forEach((canvas, i) => draw(canvas, maps[i]));
    const pen = canvases[image].getContext("2d");
    const high = canvases[image].height / rows, wide = canvases[image].width / columns;
    [pen.strokeStyle, pen.lineWidth] = ["#ff3c3c", 2];
    pen.strokeRect(column * wide, row * high, wide, high);
  };

  const under = event => {
    const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    const canvas = event.currentTarget;
    return [at(event.offsetY / canvas.clientHeight, rows), at(event.offsetX / canvas.clientWidth, columns)];
  };

  canvases.forEach((canvas, i) => {
    canvas.addEventListener("click", event => show(i, ...under(event)));
    canvas.addEventListener("mousemove", event => {
      const [row, column] = under(event);
      said.textContent = "cosine " + maps[i][row * columns + column].toFixed(2);
    });
  });
  box.hidden = false;
  show(0, +given.row, +given.column);
}
