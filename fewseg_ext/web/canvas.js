// The drawing area of the page. `element`, `props` and `watch` are Gradio's (gr.HTML, js_on_load).
//
// props.value is what the server wants shown, as JSON: {photo, mask, color, width, height}; addresses, mask may be null.
// .stage has maskPng(), which gives what is marked, as the data: address of a PNG, or "" while there is no photo.

const find = (selector) => element.querySelector(selector);
const stage = find(".stage"), photo = find("img"), mask = find(".mask"), cursor = find(".cursor");
const marks = mask.getContext("2d", { willReadFrequently: true }), pen = cursor.getContext("2d");
const UNDO_STEPS = 12;

let color = "#000", undo = [], current = null;
// Where the pen is, in pixels of the photo; `down` while it draws; `corner` is the first corner of a box.
let at = { x: 0, y: 0 }, down = false, corner = null, byKeys = false;

const tool = () => find("input[name=tool]:checked").value;
// The slider counts thousandths of the longer side.
const brush = () => Math.max(1, (Number(find(".brush input").value) * Math.max(mask.width, mask.height)) / 1000);

function load() {
  const order = JSON.parse(props.value || "null"), before = current;
  current = order;
  // Gradio reports every event's output, changed or not; a new class name for what is drawn changes only its colour.
  if (order && before && order.photo === before.photo && order.mask === before.mask) return recolor(order.color);
  stage.hidden = !order;
  find(".empty").hidden = !!order;
  if (!order) return;
  [mask.width, mask.height] = [cursor.width, cursor.height] = [order.width, order.height];
  stage.style.setProperty("--ratio", order.width / order.height);
  photo.src = order.photo;
  color = order.color;
  undo = [];
  down = false;
  corner = null;
  at = { x: order.width / 2, y: order.height / 2 };
  if (order.mask) {
    const marked = new Image();
    const loading = current;
    marked.onload = () => loading.mask === current?.mask && marks.drawImage(marked, 0, 0);
    marked.src = order.mask;
  }
  drawCursor();
}

function recolor(to) {
  color = to;
  marks.globalCompositeOperation = "source-in";
  marks.fillStyle = color;
  marks.fillRect(0, 0, mask.width, mask.height);
  marks.globalCompositeOperation = "source-over";
}

stage.maskPng = () => (stage.hidden ? "" : mask.toDataURL("image/png"));

function remember() {
  undo.push(marks.getImageData(0, 0, mask.width, mask.height));
  if (undo.length > UNDO_STEPS) undo.shift();
}

function line(from, to) {
  marks.globalCompositeOperation = tool() === "erase" ? "destination-out" : "source-over";
  marks.strokeStyle = color;
  marks.lineWidth = 2 * brush();
  marks.lineCap = "round";
  marks.beginPath();
  marks.moveTo(from.x, from.y);
  marks.lineTo(to.x, to.y);
  marks.stroke();
  marks.globalCompositeOperation = "source-over";
}

function fillBox(a, b) {
  marks.fillStyle = color;
  // Whole pixels, both corners inside.
  const left = Math.floor(Math.min(a.x, b.x)), top = Math.floor(Math.min(a.y, b.y));
  marks.fillRect(left, top, Math.floor(Math.max(a.x, b.x)) - left + 1, Math.floor(Math.max(a.y, b.y)) - top + 1);
}

function drawCursor() {
  pen.clearRect(0, 0, cursor.width, cursor.height);
  const scale = cursor.width / (cursor.clientWidth || cursor.width);
  const outline = (path) => {
    for (const [style, width] of [["#000", 3], ["#fff", 1.2]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width * scale;
      pen.stroke(path);
    }
  };
  if (corner) {
    const box = new Path2D();
    box.rect(corner.x, corner.y, at.x - corner.x, at.y - corner.y);
    outline(box);
  }
  const here = new Path2D();
  if (tool() === "box") {
    here.moveTo(at.x - 9 * scale, at.y);
    here.lineTo(at.x + 9 * scale, at.y);
    here.moveTo(at.x, at.y - 9 * scale);
    here.lineTo(at.x, at.y + 9 * scale);
  } else {
    here.arc(at.x, at.y, brush(), 0, 7);
  }
  outline(here);
}

function lower() {
  if (tool() === "box") {
    if (corner) return closeBox();
    corner = { ...at };
  } else {
    remember();
    line(at, at);
  }
  down = true;
  drawCursor();
}

function move(to) {
  const from = at;
  at = { x: Math.min(Math.max(to.x, 0), mask.width), y: Math.min(Math.max(to.y, 0), mask.height) };
  if (down && tool() !== "box") line(from, at);
  drawCursor();
}

function closeBox() {
  remember();
  fillBox(corner, at);
  corner = null;
  down = false;
  drawCursor();
}

const place = (event) => {
  const box = cursor.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * mask.width) / box.width, y: ((event.clientY - box.top) * mask.height) / box.height };
};

cursor.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  byKeys = false;
  cursor.setPointerCapture(event.pointerId);
  if (!down) move(place(event));
  else at = place(event);
  lower();
});
cursor.addEventListener("pointermove", (event) => byKeys && down ? null : move(place(event)));
cursor.addEventListener("pointerup", (event) => {
  if (tool() !== "box") down = false;
  else if (corner) {
    // A drag ends the box; a click was its first corner, and the next click is the second.
    const scale = cursor.width / cursor.clientWidth;
    if (Math.hypot(at.x - corner.x, at.y - corner.y) > 6 * scale) closeBox();
    else down = false;
  }
});
cursor.addEventListener("pointercancel", () => { down = false; corner = null; drawCursor(); });

cursor.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in steps) {
    byKeys = true;
    const far = event.shiftKey ? 1 : Math.max(mask.width, mask.height) / 50;
    move({ x: at.x + far * steps[event.key][0], y: at.y + far * steps[event.key][1] });
  } else if (event.key === " " || event.key === "Enter") {
    byKeys = true;
    if (event.repeat) { /* held, not pressed again */ }
    else if (down && tool() !== "box") down = false;
    else lower();
  } else if (event.key === "Escape") {
    down = false;
    corner = null;
    drawCursor();
  } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
    act("undo");
  } else return;
  event.preventDefault();
});
cursor.addEventListener("blur", () => { if (byKeys) down = false; });

function act(what) {
  if (what === "undo" && undo.length) marks.putImageData(undo.pop(), 0, 0);
  if (what === "clear") {
    remember();
    marks.clearRect(0, 0, mask.width, mask.height);
  }
  corner = null;
  drawCursor();
}

find(".tools").addEventListener("click", (event) => event.target.dataset.do && act(event.target.dataset.do));
find(".tools").addEventListener("input", () => { corner = null; down = false; drawCursor(); });
watch("value", load);
load();
