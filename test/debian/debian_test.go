package debian

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestArchive downloads one small package, reads its files, and proves that
// dependencies are those of an empty machine.
func TestArchive(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	// The directory that all of the project's tests share: lists are read once.
	a := Open(filepath.Join(cache, "apparate", "debian"), t.Output())
	for range 2 { // the second time everything is there
		pkgs, err := a.Fetch(t.Context(), "hostname")
		if err != nil {
			t.Fatal(err)
		}
		if len(pkgs) != 1 || pkgs[0].Name != "hostname" || pkgs[0].Version == "" {
			t.Fatalf("packages: %+v", pkgs)
		}
		found := false
		err = pkgs[0].Files(t.Context(), func(h *tar.Header, r io.Reader) error {
			if h.Name == "bin/hostname" || h.Name == "usr/bin/hostname" {
				n, err := io.Copy(io.Discard, r)
				found = n == h.Size && n > 0
				return err
			}
			return nil
		})
		if err != nil || !found {
			t.Fatalf("hostname found: %v, %v", found, err)
		}
	}
	pkgs, err := a.Closure(t.Context(), "hostname")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, p := range pkgs {
		names[p.Name] = true
	}
	if !names["libc6"] || !names["hostname"] {
		t.Errorf("closure of hostname lacks libc6: %v", names)
	}
}

// TestRelease proves that packages of another release are found and verified, and
// that the machine's own are not touched by it.
func TestRelease(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	a := OpenRelease(filepath.Join(cache, "apparate", "debian-bullseye"), "bullseye", t.Output())
	pkgs, err := a.Fetch(t.Context(), "hostname")
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) != 1 || pkgs[0].Version != "3.23" { // of Debian 11
		t.Errorf("packages of bullseye: %+v", pkgs)
	}
}

func TestReleaseSources(t *testing.T) {
	const signed = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
	for name, c := range map[string]struct{ targets, want string }{
		"no lists yet": {"", signed + "http://deb.debian.org/debian bullseye main\n" + signed + "http://deb.debian.org/debian-security bullseye-security main\n"},
		"mirrors": {
			"Debian http://m/debian/ bookworm\nDebian http://m/debian/ bookworm-updates\nDebian http://m/security/ bookworm-security\nNode https://n/ nodistro\n",
			signed + "http://m/debian/ bullseye main\n" + signed + "http://m/security/ bullseye-security main\n",
		},
	} {
		if got := releaseSources(c.targets, "bullseye"); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	a := Open("/d", io.Discard)
	got, err := a.parse([]byte("'http://x/zlib1g_1.2-1_amd64.deb' zlib1g_1%3a1.2-1_amd64.deb 86684 MD5Sum:0\n"))
	if err != nil || len(got) != 1 || got[0] != (Package{Name: "zlib1g", Version: "1:1.2-1", File: "/d/archives/zlib1g_1%3a1.2-1_amd64.deb"}) {
		t.Errorf("parse: %+v, %v", got, err)
	}
	for _, bad := range []string{"", "noise\n", "'u' nounderscore.deb 1 x\n"} {
		if got, err := a.parse([]byte(bad)); err == nil {
			t.Errorf("parse(%q) = %+v, want an error", bad, got)
		}
	}
}
