// The search of the site runs in a worker, which a browser does not start in a page that was opened from disk.
// There, a hidden frame runs the same script.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = Object.assign(document.createElement("iframe"), { hidden: true });
      frame.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      frame.srcdoc = `<script>postMessage = (data) => frameElement.answer(data);<\/script><script src="${encodeURI(decodeURI(script))}"><\/script>`;
      this.loaded = new Promise((done) => frame.addEventListener("load", () => done(frame.contentWindow), { once: true }));
      this.frame = frame;
      document.documentElement.append(frame);
    }
    async postMessage(data) {
      const frame = await this.loaded;
      setTimeout(() => frame.dispatchEvent(new MessageEvent("message", { data })));  // one task for each message
    }
    terminate() {
      this.frame.remove();
    }
  };
}
