package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/registry"
)

// A registry that wants credentials is converted in, checked and mounted from
// with what docker's config has; nothing prints the password.
func TestCredentials(t *testing.T) {
	for how, option := range map[string]registry.Option{
		"token": registry.WithToken("me", "very-secret", 0), "basic": registry.WithBasic("me", "very-secret"),
	} {
		t.Run(how, func(t *testing.T) {
			reg := registry.New(t, option)
			config := t.TempDir()
			t.Setenv("DOCKER_CONFIG", config)
			text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Host(), base64.StdEncoding.EncodeToString([]byte("me:very-secret")))
			if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			img, files := shell(t, 6, 600_000)
			ref, err := name.ParseReference(reg.Host() + "/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "me", Password: "very-secret"})); err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			for _, args := range [][]string{{"convert", ref.String()}, {"convert", ref.String()}, {"check", ref.String() + "-apparate"}} {
				out, err := run(t, args...)
				if err != nil {
					t.Fatal(err)
				}
				said.WriteString(out)
			}
			out := mountAndRead(t, ref.String()+"-apparate", files)
			if s := said.String() + out; strings.Contains(s, "very-secret") {
				t.Errorf("the password was printed: %s", s)
			}
		})
	}
}
