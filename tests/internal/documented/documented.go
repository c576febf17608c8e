// Package documented gives tests the commands that the documentation tells users to run.
package documented

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Commands returns those of the first code block under a heading of docs/install.md,
// in order. Root is the root of the source tree.
func Commands(t *testing.T, root, heading string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/install.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "# "+heading+"\n")
	require.True(t, found, "docs/install.md has no heading %q", heading)
	blocks := strings.SplitN(rest, "```", 3)
	require.Len(t, blocks, 3, "no code block under %q", heading)
	var commands []string
	for line := range strings.SplitSeq(strings.TrimPrefix(blocks[1], "sh"), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			commands = append(commands, line)
		}
	}
	require.NotEmpty(t, commands, "the code block under %q is empty", heading)
	return commands
}
