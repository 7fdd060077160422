package story

import (
	"os"
	"path/filepath"

	"github.com/apparate/apparate/hack/image/build"
)

// pushInstallation pushes the image of the installation with the programs of bin. Those
// of another tag than 1.0.0 are others, that do the same.
func (w *world) pushInstallation(tag string) {
	w.t.Helper()
	bin := filepath.Join(w.root, "bin")
	if tag != "1.0.0" {
		bin = w.t.TempDir()
		for _, p := range build.Programs {
			text, err := os.ReadFile(w.bin(p))
			if err == nil {
				err = os.WriteFile(filepath.Join(bin, p), append(text, tag...), 0o755)
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}
	}
	img, err := build.Build(w.t.Context(), w.t.Output(), build.Options{Root: w.root, Version: tag, Bin: bin})
	if err == nil {
		err = w.Push(w.t.Context(), "apparate/apparate:"+tag, img)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}
