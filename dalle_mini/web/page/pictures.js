// Pictures that somebody brings. They are made small here: what is sent is the square that the codes hold.
window.picturesOf = {
  // Its middle, on white, as wide as the model's pictures, as a data URL; null, and told, where it cannot be read.
  square: async (file) => {
    fields.forgive();
    try {
      const whole = await createImageBitmap(file);
      const side = Math.min(whole.width, whole.height);
      const canvas = make("canvas", { width: page.resolution, height: page.resolution });
      const pen = canvas.getContext("2d");
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.imageSmoothingQuality = "high";
      const [left, top] = [(whole.width - side) / 2, (whole.height - side) / 2];
      pen.drawImage(whole, left, top, side, side, 0, 0, canvas.width, canvas.height);
      return canvas.toDataURL("image/png");
    } catch {
      fields.refuse(say("no-picture", { name: file?.name ?? "" }), null);
      return null;
    }
  },
};
