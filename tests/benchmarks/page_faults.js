() => {
  // What of the page cannot be read: wider than its room, cut off, written over, or too pale. An empty list is well.
  const faults = [], root = document.documentElement;
  const start = (node) => (node.textContent || "").trim().replace(/\s+/g, " ").slice(0, 50);
  const numbers = (colour) => (colour.match(/[\d.]+/g) || []).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const rgba = numbers(getComputedStyle(each).backgroundColor);
      if (rgba.length === 3 || rgba[3] > 0) return light(rgba);
    }
    return 1;
  };
  if (root.scrollWidth > root.clientWidth) faults.push(`the page is ${root.scrollWidth} px wide, of ${root.clientWidth}`);
  for (const node of document.querySelectorAll("body *:not(svg, svg *)")) {
    const box = node.getBoundingClientRect(), style = getComputedStyle(node);
    if (!box.width || style.visibility === "hidden") continue;
    if (style.display !== "inline" && node.scrollWidth > node.clientWidth + 1)
      faults.push(`wider than its room: ${node.tagName} ${start(node)}`);
    if (box.left < -1 || box.right > root.clientWidth + 1) faults.push(`outside of the page: ${node.tagName} ${start(node)}`);
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const [one, other] = [light(numbers(style.color)), behind(node)];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (own && contrast < 4.5) faults.push(`pale, contrast ${contrast.toFixed(1)}: ${start(node)}`);
  }
  for (const picture of document.querySelectorAll("svg")) {
    const frame = picture.getBoundingClientRect();
    if (!frame.width) continue;
    const name = picture.getAttribute("aria-label").slice(0, 50);
    const texts = [...picture.querySelectorAll("text")].map((text) => [start(text), text.getBoundingClientRect()]);
    for (const [text, box] of texts) {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        faults.push(`cut off: ${text} in ${name}`);
      if (box.height < 9) faults.push(`too small, ${box.height.toFixed(1)} px: ${text} in ${name}`);
    }
    texts.forEach(([text, box], place) => texts.slice(place + 1).forEach(([later, next]) => {
      const across = Math.min(box.right, next.right) - Math.max(box.left, next.left);
      const down = Math.min(box.bottom, next.bottom) - Math.max(box.top, next.top);
      if (across > 1 && down > 3) faults.push(`over each other: ${text} and ${later} in ${name}`);
    }));
  }
  return faults;
}
