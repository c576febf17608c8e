package results

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
)

// WriteText prints the table for a terminal.
func (t *Table) WriteText(out io.Writer) error {
	fmt.Fprintf(out, "\n%s\n", t.Title)
	if t.Note != "" {
		fmt.Fprintln(out, t.Note)
	}
	if t.Incomplete != "" {
		fmt.Fprintf(out, "Incomplete: %s\n", t.Incomplete)
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, cells := range append([][]string{t.heads()}, t.cells()...) {
		fmt.Fprintln(w, strings.Join(cells, "\t")+"\t")
	}
	return w.Flush()
}

// WriteMarkdown writes the rows and their heads for a document, which has its own words for the
// title and the note.
func (t *Table) WriteMarkdown(out io.Writer) error {
	rule := strings.Repeat("|---", len(t.Keys)) + strings.Repeat("|--:", len(t.Columns)) + "|"
	lines := []string{markdown(t.heads()), rule}
	for _, cells := range t.cells() {
		lines = append(lines, markdown(cells))
	}
	_, err := fmt.Fprintln(out, strings.Join(lines, "\n"))
	return err
}

func markdown(cells []string) string { return "| " + strings.Join(cells, " | ") + " |" }

func (t *Table) heads() []string {
	heads := append([]string{}, t.Keys...)
	for _, column := range t.Columns {
		head := column.Name
		if column.Unit != "" {
			head += " (" + column.Unit + ")"
		}
		heads = append(heads, head)
	}
	return heads
}

func (t *Table) cells() [][]string {
	rows := make([][]string, 0, len(t.Rows))
	for _, row := range t.Rows {
		cells := append([]string{}, row.Keys...)
		for i, value := range row.Values {
			text := "-"
			if Measured(value) {
				text = strconv.FormatFloat(value, 'f', t.Columns[i].Digits, 64)
			}
			cells = append(cells, text)
		}
		rows = append(rows, cells)
	}
	return rows
}
