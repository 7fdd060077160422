package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const pullSecretsBinding = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: apparate-pull-secrets}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: apparate-pull-secrets}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: operator}]
`

// TestPullSecrets is the built operator with a list: it works without the rights
// for it, says which are missing, and keeps the list once it has them.
func TestPullSecrets(t *testing.T) {
	w := newWorld(t, options{stopped: true})
	file := filepath.Join(t.TempDir(), "list.json")
	list := fmt.Sprintf(`{"name":"pull","namespaces":%q,"dockerUsername":"u","dockerPassword":%q,"dockerServer":%q}`, w.namespace, w.token, w.registry.Addr)
	if err := os.WriteFile(file, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	w.args = append(w.args, "--pull-secrets", file)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "app"}}
	if err := w.client.Create(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.eventually("the missing right is named", func() error {
		if !strings.Contains(w.log.String(), `cannot list resource \"serviceaccounts\"`) {
			return errors.New("not in the log")
		}
		return nil
	})
	w.apply(pullSecretsBinding)
	w.eventually("the secret is there and attached", func() error {
		var s corev1.Secret
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "pull"}, &s); err != nil {
			return err
		}
		if s.Type != corev1.SecretTypeDockerConfigJson || !strings.Contains(string(s.Data[corev1.DockerConfigJsonKey]), w.token) {
			return fmt.Errorf("it is a %s without the password", s.Type)
		}
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(account), account); err != nil {
			return err
		}
		if len(account.ImagePullSecrets) != 1 || account.ImagePullSecrets[0].Name != "pull" {
			return fmt.Errorf("the references are %v", account.ImagePullSecrets)
		}
		return nil
	})
	if got := w.metric("apparate_pull_secrets "); got != "apparate_pull_secrets 1\n" {
		t.Errorf("metrics: %q", got)
	}
}
