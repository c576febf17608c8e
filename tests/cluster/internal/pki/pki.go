// Package pki makes the secrets of one cluster: a certificate authority, one
// serving certificate, client certificates, the key that signs service account
// tokens, random bearer tokens, and the kubeconfigs that carry them.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// validity is long because a test cluster is never renewed, only remade.
const validity = 10 * 365 * 24 * time.Hour

// User is someone whom the API server knows by a bearer token.
type User struct {
	// File names the user's kubeconfig: FILE.kubeconfig.
	File string
	// Name and Groups are what the API server sees.
	Name   string
	Groups []string
}

// Authority issues certificates into one folder.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Exists says whether the folder was filled by Create.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "done"))
	return err == nil
}

// Create fills dir (mode 0700) with everything; ips and names go into the serving
// certificate.
func Create(dir string, ips, names []string, users []User) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	authority, err := newAuthority(dir)
	if err != nil {
		return err
	}
	if err := authority.issueAll(ips, names); err != nil {
		return err
	}
	if err := createTokens(dir, users); err != nil {
		return err
	}
	return writeFile(dir, "done", nil)
}

func (a *Authority) issueAll(ips, names []string) error {
	server := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "opensandbox-cluster"},
		DNSNames:    names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, ip := range ips {
		server.IPAddresses = append(server.IPAddresses, net.ParseIP(ip))
	}
	// The API server shows this one to etcd and to the kubelet, which asks the API
	// server what its holder may do: hence the group.
	client := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := a.issue("server", server); err != nil {
		return err
	}
	if err := a.issue("client", client); err != nil {
		return err
	}
	return createServiceAccountKey(a.dir)
}

func newAuthority(dir string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "opensandbox-cluster-ca"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	authority := &Authority{dir: dir, cert: template, key: key}
	if err := authority.sign("ca", template, key); err != nil {
		return nil, err
	}
	return authority, nil
}

func (a *Authority) issue(name string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	return a.sign(name, template, key)
}

// sign writes NAME.crt and NAME.key.
func (a *Authority) sign(name string, template *x509.Certificate, key *ecdsa.PrivateKey) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template.SerialNumber = serial
	// Some slack for clocks that differ between host and guest.
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(validity)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return fmt.Errorf("sign %s: %w", name, err)
	}
	if err := writePEM(a.dir, name+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return writeKey(a.dir, name+".key", key)
}

func createServiceAccountKey(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	if err := writePEM(dir, "service-account.pub", "PUBLIC KEY", public); err != nil {
		return err
	}
	return writeKey(dir, "service-account.key", key)
}

func writeKey(dir, name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(dir, name, "EC PRIVATE KEY", der)
}

func writePEM(dir, name, kind string, der []byte) error {
	return writeFile(dir, name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func writeFile(dir, name string, data []byte) error {
	return os.WriteFile(filepath.Join(dir, name), data, 0o600)
}

// createTokens writes tokens.csv for the API server, and FILE.token for each user.
func createTokens(dir string, users []User) error {
	var csv strings.Builder
	for _, user := range users {
		token := make([]byte, 24)
		if _, err := rand.Read(token); err != nil {
			return err
		}
		text := hex.EncodeToString(token)
		fmt.Fprintf(&csv, "%s,%s,%s,%q\n", text, user.Name, user.File, strings.Join(user.Groups, ","))
		if err := writeFile(dir, user.File+".token", []byte(text)); err != nil {
			return err
		}
	}
	return writeFile(dir, "tokens.csv", []byte(csv.String()))
}

// Token returns a user's token.
func Token(dir string, user User) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, user.File+".token"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no token of %s: the cluster was not started", user.Name)
	}
	return string(data), err
}
