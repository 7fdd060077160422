package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pki is the cluster's certificate authority. Certificates live for the time of a
// test cluster.
type pki struct {
	dir string
	ca  *x509.Certificate
	key *ecdsa.PrivateKey
	// caPEM is the authority's certificate.
	caPEM []byte
}

// identity is a certificate with its key, both PEM.
type identity struct{ cert, key []byte }

const lifetime = 30 * 24 * time.Hour

// newPKI makes an authority whose files are written below dir.
func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &pki{dir: dir, key: key, ca: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test-cluster"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}}
	der, err := x509.CreateCertificate(rand.Reader, p.ca, p.ca, key.Public(), key)
	if err != nil {
		return nil, err
	}
	p.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return p, p.write("ca", identity{p.caPEM, keyPEM})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

// issue makes a certificate of the user name, who is in the group group (which may be
// empty), for the addresses and names hosts.
func (p *pki) issue(name, group string, hosts ...string) (identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return identity{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return identity{}, err
	}
	cert := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if group != "" {
		cert.Subject.Organization = []string{group}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, p.ca, key.Public(), p.key)
	if err != nil {
		return identity{}, err
	}
	keyPEM, err := encodeKey(key)
	return identity{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM}, err
}

// write writes NAME.crt and NAME.key.
func (p *pki) write(name string, id identity) error {
	if err := os.WriteFile(p.file(name+".crt"), id.cert, 0o600); err != nil {
		return err
	}
	return os.WriteFile(p.file(name+".key"), id.key, 0o600)
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

// kubeconfig writes a kubeconfig that needs no other file.
func (p *pki) kubeconfig(path, server string, id identity) error {
	const name = "apparate"
	k := clientcmdapi.NewConfig()
	k.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: p.caPEM}
	k.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: id.cert, ClientKeyData: id.key}
	k.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	k.CurrentContext = name
	return clientcmd.WriteToFile(*k, path)
}

// certificates makes the authority and what the control plane needs of it.
func (c *Cluster) certificates() (err error) {
	if c.pki, err = newPKI(filepath.Join(c.Dir, "pki")); err != nil {
		return err
	}
	for _, u := range []struct {
		name, user, group string
		hosts             []string
	}{
		{name: "apiserver", user: "kube-apiserver", hosts: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
			"127.0.0.1", controlIP, apiServiceIP,
		}},
		{name: "accounts", user: "service-accounts"}, // a pair of keys, no more
		{name: admin, user: admin, group: "system:masters"},
		{name: controllerManager, user: "system:" + controllerManager},
		{name: scheduler, user: "system:" + scheduler},
	} {
		id, err := c.pki.issue(u.user, u.group, u.hosts...)
		if err != nil {
			return err
		}
		if err := c.pki.write(u.name, id); err != nil {
			return err
		}
		if err := c.pki.kubeconfig(c.kubeconfig(u.name), apiURL, id); err != nil {
			return err
		}
	}
	c.Kubeconfig = c.kubeconfig(admin)
	return door(c.Dir, c.enterSpace())
}

// admin is the administrator's name.
const admin = "admin"

func (c *Cluster) kubeconfig(name string) string { return kubeconfigFile(c.Dir, name) }

// kubeconfigFile is where the cluster in dir has the kubeconfig of the user name.
func kubeconfigFile(dir, name string) string { return filepath.Join(dir, "pki", name+".kubeconfig") }

// Config is an administrator's configuration for clients in this process.
func (c *Cluster) Config() *rest.Config {
	return &rest.Config{
		Host: apiURL, Dial: c.Dial, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.pki.caPEM, CertFile: c.pki.file(admin + ".crt"), KeyFile: c.pki.file(admin + ".key")},
	}
}

// User makes a user without any right but those of everybody, and returns the path of
// a kubeconfig for programs inside of the control plane's network.
func (c *Cluster) User(name, group string) (kubeconfig string, err error) {
	id, err := c.pki.issue(name, group)
	if err != nil {
		return "", err
	}
	path := c.kubeconfig("user-" + name)
	return path, c.pki.kubeconfig(path, apiURL, id)
}
