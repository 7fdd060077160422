package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/registry"
)

const (
	// passwordLife is how long a password of the plugin below is good.
	passwordLife = 20 * time.Second
	// coldFiles are read one after the other, one each coldPause: two minutes.
	coldFiles, coldPause = 250, 480 * time.Millisecond
)

// dockerConfig writes a docker config.json and returns its directory.
func dockerConfig(t *testing.T, host, user, password string) string {
	t.Helper()
	dir := t.TempDir()
	writeDockerConfig(t, dir, host, user, password)
	return dir
}

func writeDockerConfig(t *testing.T, dir, host, user, password string) {
	t.Helper()
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// plugin is a credential provider plugin that makes up a new password at each
// run, which is good for passwordLife.
type plugin struct{ dir string }

func newPlugin(t *testing.T, host string) *plugin {
	t.Helper()
	p := &plugin{t.TempDir()}
	for _, d := range []string{"bin", "issued"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`#!/bin/sh
cat > %[1]s/request
read -r password < /proc/sys/kernel/random/uuid
: > %[1]s/issued/$password
echo "gave out $password" >&2
echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry",'
echo '"cacheDuration":"%[2]s","auth":{"%[3]s":{"username":"plugged","password":"'$password'"}}}'
`, p.dir, passwordLife, host)
	config := fmt.Sprintf(`
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: make-up
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: [%q]
  defaultCacheDuration: 12h
`, host)
	for file, text := range map[string]string{"bin/make-up": script, "config.yaml": config} {
		if err := os.WriteFile(filepath.Join(p.dir, file), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *plugin) args() []string {
	return []string{"--credential-provider-config", p.dir + "/config.yaml", "--credential-provider-bin-dir", p.dir + "/bin"}
}

// good says whether a password is one that the plugin gave out lately.
func (p *plugin) good(password string) bool {
	st, err := os.Stat(filepath.Join(p.dir, "issued", filepath.Base(password)))
	return err == nil && password != "" && time.Since(st.ModTime()) < passwordLife
}

// passwords are all that it gave out, the oldest first.
func (p *plugin) passwords(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(p.dir, "issued"))
	if err != nil {
		t.Fatal(err)
	}
	age := map[string]time.Time{}
	var all []string
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		all, age[e.Name()] = append(all, e.Name()), st.ModTime()
	}
	slices.SortFunc(all, func(a, b string) int { return age[a].Compare(age[b]) })
	return all
}

// newHost starts a node for the registries hosts, whose snapshotter gets args.
func newHost(t *testing.T, hosts []string, args ...string) *host {
	t.Helper()
	dir := t.TempDir()
	n, err := node.Start(t.Context(), node.Options{
		Dir: dir, Tools: commands, Snapshotter: commands[apparate], SnapshotterArgs: args, Registries: hosts,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.WriteLogs(t.Output())
		}
		if err := n.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
		if left, err := node.Left(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
	return &host{Node: n}
}

// pullAs pulls as a client with its own password, as kubelet has its own.
func (h *host) pullAs(t *testing.T, ref, user, password string) {
	t.Helper()
	if _, err := h.Ctr(t.Context(), "images", "pull", "--hosts-dir", h.HostsDir(), "--snapshotter", node.Apparate, "--user", user+":"+password, ref); err != nil {
		t.Fatal(err)
	}
}

// A registry demands tokens that expire in 30 seconds. A container that reads
// files which nobody read before, for two minutes, sees no error; few tokens are
// asked for, and no request is refused in a burst. Once with the password in
// docker's config, once with a kubelet plugin whose passwords expire as well.
func TestTokensExpire(t *testing.T) {
	s := newTokenServer(t)
	s.user("pusher", func(p string) bool { return p == "pusher-password" })
	reg := s.start(t)
	img, files := shell(t, coldFiles, 100_000)
	ref, err := name.ParseReference(reg.Addr + "/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "pusher", Password: "pusher-password"})); err != nil {
		t.Fatal(err)
	}
	convert := exec.CommandContext(t.Context(), commands[apparate], "convert", ref.String())
	convert.Env = append(os.Environ(), "DOCKER_CONFIG="+dockerConfig(t, reg.Addr, "pusher", "pusher-password"))
	if out, err := convert.CombinedOutput(); err != nil {
		t.Fatalf("convert: %v\n%s", err, out)
	}

	t.Run("docker config", func(t *testing.T) {
		t.Parallel()
		g := newGate(t, reg.Addr)
		s.user("docker", func(p string) bool { return p == "docker-password" })
		h := newHost(t, []string{g.host()}, "--background-fetch-delay", "-1s",
			"--docker-config", dockerConfig(t, g.host(), "docker", "docker-password"))
		readsColdFiles(t, h, s, g, "docker", files)
		nothingSecret(t, h, append(s.tokens("docker"), "docker-password", base64.StdEncoding.EncodeToString([]byte("docker:docker-password")))...)
	})
	t.Run("kubelet plugin", func(t *testing.T) {
		t.Parallel()
		g := newGate(t, reg.Addr)
		p := newPlugin(t, g.host())
		s.user("plugged", p.good)
		h := newHost(t, []string{g.host()}, append(p.args(), "--background-fetch-delay", "-1s", "--docker-config", t.TempDir())...)
		readsColdFiles(t, h, s, g, "plugged", files)
		all := p.passwords(t)
		t.Logf("%d passwords", len(all))
		if least, most := int(120*time.Second/passwordLife)-1, int(120*time.Second/passwordLife)*2+2; len(all) < least || len(all) > most {
			t.Errorf("the plugin ran %d times in two minutes, want %d to %d", len(all), least, most)
		}
		if p.good(all[0]) {
			t.Error("the first password is still good: the test proves nothing")
		}
		nothingSecret(t, h, append(s.tokens("plugged"), all...)...)
	})
}

// readsColdFiles runs the container of two minutes; the snapshotter gets its
// tokens as user.
func readsColdFiles(t *testing.T, h *host, s *tokenServer, g *gate, user string, files map[string][]byte) {
	t.Helper()
	image := g.host() + "/team/app:v1-apparate"
	h.pullAs(t, image, "pusher", "pusher-password")
	ranges, denied := g.counts()
	given, _ := s.count(user)
	// Backwards: what is fetched ahead of need was read before.
	script := fmt.Sprintf("cd /data; echo up; for f in $(ls -r); do sha256sum $f || exit 1; sleep %v; done; echo done", coldPause.Seconds())
	c, err := h.Run(t.Context(), image, node.Apparate, "cold", nil, "/bin/sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitLine(t.Context(), "up"); err != nil {
		t.Fatal(err)
	}
	if m, err := c.RootMount(t.Context()); err != nil || m.String() != "overlay on erofs" {
		t.Fatalf("the root is %v, %v: it is not read lazily", m, err)
	}
	if err := c.WaitLine(t.Context(), "done"); err != nil {
		t.Fatal(err)
	}
	wait(t, c)
	lines := strings.Split(strings.TrimSpace(sums(files)), "\n")
	slices.Reverse(lines)
	if want := "up\n" + strings.Join(lines, "\n") + "\ndone\n"; c.Output() != want {
		t.Errorf("read\n%s\nwant\n%s", c.Output(), want)
	}
	nowRanges, nowDenied := g.counts()
	nowGiven, wrong := s.count(user)
	t.Logf("%d requests for parts of layers, %d refused; %d tokens, %d wrong passwords", nowRanges-ranges, nowDenied-denied, nowGiven-given, wrong)
	if nowRanges-ranges < coldFiles {
		t.Errorf("%d files were read with %d requests: they were not cold", coldFiles, nowRanges-ranges)
	}
	const lives = int(120 * time.Second / tokenLife)
	if n := nowGiven - given; n < lives-1 || n > 2*lives+2 {
		t.Errorf("%d tokens in two minutes, want %d to %d", n, lives-1, 2*lives+2)
	}
	if n := nowDenied - denied; n > lives {
		t.Errorf("%d requests were refused: more than one for each token", n)
	}
	if wrong != 0 {
		t.Errorf("%d wrong passwords were sent", wrong)
	}
	stale(t, s.tokens(user)[0], g)
}

// stale proves that the registry does not take a token for longer than it says.
func stale(t *testing.T, token string, g *gate) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.URL+"/v2/team/app/manifests/v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the first token still gets %s: the test proves nothing", resp.Status)
	}
}

// nothingSecret looks for secrets in what the daemons of h logged, in their
// command lines, and in every file that they keep.
func nothingSecret(t *testing.T, h *host, secrets ...string) {
	t.Helper()
	look := func(where string, b []byte) {
		for _, s := range secrets {
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("%s has a secret that begins with %.8q", where, s)
			}
		}
	}
	look("the log", []byte(h.Logs()))
	look("the status", []byte(h.status(t, "json")))
	for _, dir := range []string{h.SnapshotterRoot(), h.HostsDir(), filepath.Dir(h.SnapshotterSocket())} {
		home := device(t, dir)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && device(t, path) != home {
				return fs.SkipDir // a mounted image
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			look(path, b)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	pid, err := h.daemon()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []int{pid, h.SnapshotterPID()} {
		for _, f := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p, f))
			if err != nil {
				t.Fatal(err)
			}
			look(f, b)
		}
	}
}

// device is the number of the file system that path is on.
func device(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Dev
}

// With a wrong password an image is pulled the ordinary way, the log says why in
// one line, other images are not harmed; with the right one the next is lazy.
func TestWrongCredentialsOnNode(t *testing.T) {
	closed := registry.New(t, registry.WithToken("me", "right-password", 0))
	open := registry.New(t)
	good := remote.WithAuth(&authn.Basic{Username: "me", Password: "right-password"})
	config := dockerConfig(t, closed.Host(), "me", "right-password")
	t.Setenv("DOCKER_CONFIG", config)
	var refs []string
	var all []map[string][]byte
	for i, at := range []*registry.Registry{closed, closed, open} {
		img, files := shell(t, 4, 300_000)
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		// A lowest layer of its own: what one image pulled the ordinary way, the
		// next would have.
		own := layer(t, file{name: "name", mode: 0o644, body: fmt.Append(nil, "app", i)})
		ref := push(t, at, fmt.Sprintf("team/app%d:v1", i), image(t, append([]v1.Layer{own}, layers...)...), good)
		if _, err := run(t, "convert", ref); err != nil {
			t.Fatal(err)
		}
		refs, all = append(refs, ref+"-apparate"), append(all, files)
	}
	writeDockerConfig(t, config, closed.Host(), "me", "wrong-password")
	h := newHost(t, []string{closed.Host(), open.Host()}, "--background-fetch-delay", "-1s", "--docker-config", config)

	lazy := func(i int) bool {
		t.Helper()
		ref, files := refs[i], all[i]
		c, err := h.Run(t.Context(), ref, node.Apparate, fmt.Sprintf("c%d", i), nil, "/bin/sh", "-c", "cd /data && sha256sum * && echo done && sleep 300")
		if err == nil {
			err = c.WaitLine(t.Context(), "done")
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSuffix(c.Output(), "done\n"); got != sums(files) {
			t.Errorf("%s read\n%swant\n%s", ref, got, sums(files))
		}
		m, err := c.RootMount(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		return m.String() == "overlay on erofs"
	}
	h.pullAs(t, refs[0], "me", "right-password")
	if lazy(0) {
		t.Error("an image is read lazily with a wrong password")
	}
	said := "refuses the credentials for team/app0"
	if n := strings.Count(h.Logs(), said); n == 0 {
		t.Errorf("the log does not say %q", said)
	}
	h.pull(t, refs[2])
	if !lazy(2) {
		t.Error("another registry's image is not read lazily")
	}
	writeDockerConfig(t, config, closed.Host(), "me", "right-password")
	h.pullAs(t, refs[1], "me", "right-password")
	if !lazy(1) {
		t.Error("with the right password an image is not read lazily")
	}
	nothingSecret(t, h, "wrong-password", "right-password", "secret-token")
}
