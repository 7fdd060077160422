package images

import (
	"bytes"
	"context"
	_ "embed" // the application's files
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// The application: what it depends on, exactly, and its program.
var (
	//go:embed node/package.json
	nodePackage string
	//go:embed node/package-lock.json
	nodeLock string
	//go:embed node/server.js
	nodeServer string
)

// nodeApp is a server that requires a few hundred of its packages' files at its
// start and never touches most of them.
func nodeApp() recipe {
	return recipe{
		layers: []layerRecipe{
			base(),
			{name: "nodejs", packages: []string{"nodejs", "ca-certificates"}},
			{name: "node-modules", files: []file{{path: "app/"}}, made: npmTree{dir: "app", manifest: nodePackage, lock: nodeLock}},
			{name: "node-app", files: []file{{path: "app/server.js", text: nodeServer}}},
		},
		env:        map[string]string{"NODE_ENV": "production", "TZ": "UTC"},
		entrypoint: []string{"node", "/app/server.js"},
		spec: Spec{
			Repository: "node-app", Path: "/",
			Body: "<p><em>app</em></p><b>node-app</b> sum 30 answer 42 days 2024-02-29 2024-03-01 id 91ad9bcb-d637-579d-818a-e391a5631aa1 agent function",
		},
	}
}

// npmTree is the node_modules of an application, as npm lays it out from a lock
// file. No script of a package is run.
type npmTree struct {
	dir            string // of the application in the image
	manifest, lock string // package.json and package-lock.json
}

var _ content = npmTree{}

func (npmTree) level() int { return gzip.DefaultCompression }

// write calls npm, which downloads into a cache of ours and verifies digests.
func (t npmTree) write(ctx context.Context, b *builder, w *layerWriter) (err error) {
	if _, err := exec.LookPath("npm"); err != nil {
		return errors.New("npm is not here: the packages of this image come from its registry")
	}
	tmp, err := os.MkdirTemp(b.dir, "npm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for name, text := range map[string]string{"package.json": t.manifest, "package-lock.json": t.lock} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-bin-links", "--omit=optional", "--no-audit", "--no-fund",
		"--no-update-notifier", "--prefer-offline", "--cache", filepath.Join(filepath.Dir(b.dir), "npm"))
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w: %s", err, bytes.TrimSpace(out))
	}
	return filepath.WalkDir(filepath.Join(tmp, "node_modules"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "/node_modules/.package-lock.json") { // npm's own note
			return err
		}
		return t.add(w, tmp, path, d)
	})
}

// add writes the file at path with a time and a mode that do not depend on npm.
func (t npmTree) add(w *layerWriter, tmp, path string, d fs.DirEntry) (err error) {
	info, err := d.Info()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("npm made %s, which is no file", path)
	}
	name, err := filepath.Rel(tmp, path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	mode := int64(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	return w.addStream(filepath.Join(t.dir, name), mode, info.Size(), f)
}
