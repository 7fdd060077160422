package dropin

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// versions are the containerds that testdata/dumps has the dumps of.
var versions = []string{"1.4.13~ds1", "1.6.20~ds1", "v1.7.35", "v2.4.2"}

// hosts are the directories of testdata/hosts and two that are none: one without a
// main file, and one whose main file is what `containerd config default` prints.
// v3 is only for containerd 2.x.
func hosts(version string) []string {
	all := []string{"none", "generated", "debian", "plain", "rich", "v1"}
	if strings.HasPrefix(version, "v2") {
		all = append(all, "v3")
	}
	return all
}

// golden are the hosts whose dumps are kept.
var golden = map[string]bool{"none": true, "rich": true, "v1": true, "v3": true}

var importsLine = regexp.MustCompile(`(?m)^imports = .*\n`)

// keep makes a dump one that can be compared: without the directory, and without
// the files that were read, which containerd 1.x lists in any order.
func keep(dump []byte, dir string) []byte {
	dump = importsLine.ReplaceAll(dump, nil)
	return bytes.ReplaceAll(dump, []byte(dir), []byte("@DIR@"))
}

// hostFiles returns the files of a host by their path below the directory dir.
func hostFiles(t *testing.T, host, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	root := filepath.Join("testdata", "hosts", host)
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(root, path)
		files[rel] = bytes.ReplaceAll(data, []byte("@DIR@"), []byte(dir))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// input is a host as on a machine, but for the dump.
func input(version, dir string) Input {
	return Input{
		MainPath: dir + "/config.toml", Version: version, Glob: dir + "/run/*.toml",
		Socket: "/run/apparate/snapshotter.sock", Root: "/var/lib/containerd/io.containerd.snapshotter.v1.apparate", Name: "apparate",
	}
}

func dumpFile(t *testing.T, version, host, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "dumps", version, host, name+".toml"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// goldenInput is a host of testdata with the dump that its containerd made.
func goldenInput(t *testing.T, version, host string) Input {
	t.Helper()
	in := input(version, "/host")
	if host != "none" {
		for path, data := range hostFiles(t, host, "/host") {
			if path == "config.toml" {
				in.Main = data
			} else {
				in.Imported = append(in.Imported, File{Path: "/host/" + path, Data: data})
			}
		}
	}
	in.Dump = dumpFile(t, version, host, "before")
	return in
}

// TestGolden plans for all versions with dumps that real programs made, and checks
// what they made of the plan. TestPrograms makes those dumps anew.
func TestGolden(t *testing.T) {
	for _, version := range versions {
		for _, host := range hosts(version) {
			if !golden[host] {
				continue
			}
			t.Run(version+"/"+host, func(t *testing.T) {
				in := goldenInput(t, version, host)
				plan, err := Make(in)
				if err != nil {
					t.Fatal(err)
				}
				if want := dumpFile(t, version, host, "dropin"); !bytes.Equal(plan.DropIn, want) {
					t.Errorf("the drop-in is now\n%s\nand was, when it was given to containerd,\n%s", plan.DropIn, want)
				}
				if err := Verify(in.Dump, dumpFile(t, version, host, "after"), in); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
