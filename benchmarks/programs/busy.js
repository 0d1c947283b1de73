// Work of compiled JavaScript and of the runtime, with short waits in it. Usage: busy.js SECONDS
const fold = (depth, tree) =>
  depth ? fold(depth - 1, tree) + fold(depth - 1, tree) : JSON.stringify(tree).length;
const mix = (turns) => {
  let sum = 1;
  for (let i = 0; i < turns; i++) sum = (sum * 31 + i) % 65521;
  return sum;
};
const end = Date.now() + 1000 * Number(process.argv[2]);
const turn = () => {
  for (let i = 0; i < 10; i++) {
    fold(7, { a: [1, 2, 3] });
    mix(20000);
    [5, 1, 4, 2, 3].sort((a, b) => a - b).map((x) => "x".repeat(x).replace(/x+/, "y"));
  }
  if (Date.now() < end) setTimeout(turn, 2);
};
turn();
