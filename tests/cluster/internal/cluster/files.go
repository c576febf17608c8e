package cluster

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"os"
	"path/filepath"
	"text/template"

	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

//go:embed files
var files embed.FS

var templates = template.Must(template.New("").Option("missingkey=error").ParseFS(files, "files/*"))

// values is what the configuration files may use.
type values struct {
	*settings.Cluster
	Pki         string
	NodeName    string
	Runc        string
	Snapshotter string
	PauseImage  string
}

func (c *Cluster) values() values {
	return values{Cluster: c.Cluster, Pki: c.pki(), NodeName: settings.NodeName, PauseImage: PauseImage}
}

// write fills in the configuration file of that name and writes it to the path, unless the
// same content is there already. It returns a fingerprint of the content: when that changes,
// the process that reads the file is restarted.
func write(path, name string, v values) (string, error) {
	var content bytes.Buffer
	if err := templates.ExecuteTemplate(&content, name, v); err != nil {
		return "", err
	}
	sum := sha256.Sum256(content.Bytes())
	fingerprint := hex.EncodeToString(sum[:8])
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content.Bytes()) {
		return fingerprint, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return fingerprint, os.WriteFile(path, content.Bytes(), 0o644)
}
