//! As much Markdown as the checks need: lines outside of code blocks, headings, links, tables.

/// The lines of a page with their numbers from 1, without code blocks.
pub(crate) fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    (1..).zip(page.lines()).filter(move |(_, line)| {
        let start = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        match (fence, mark) {
            (None, None) => true,
            (None, Some(mark)) => {
                fence = Some(mark);
                false
            }
            (Some(open), Some(mark)) if open == mark => {
                fence = None;
                false
            }
            (Some(_), _) => false,
        }
    })
}

/// The lines inside code blocks.
pub(crate) fn code(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let outside: Vec<usize> = prose(page).map(|(number, _)| number).collect();
    (1..).zip(page.lines()).filter(move |(number, line)| {
        let fence = line.trim_start().starts_with("```") || line.trim_start().starts_with("~~~");
        !fence && outside.binary_search(number).is_err()
    })
}

/// A heading's depth and text.
pub(crate) fn heading(line: &str) -> Option<(usize, &str)> {
    let depth = line.bytes().take_while(|byte| *byte == b'#').count();
    let text = line[depth..].strip_prefix(' ')?;
    (1..=6).contains(&depth).then_some((depth, text.trim()))
}

/// The name by which a link names a heading.
pub(crate) fn anchor(heading: &str) -> String {
    heading
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => c.to_lowercase().next(),
            _ => None,
        })
        .collect()
}

/// The targets of the links in a line.
pub(crate) fn links(line: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find("](") {
        rest = &rest[start + 2..];
        let Some(end) = rest.find(')') else { break };
        targets.push(rest[..end].split_whitespace().next().unwrap_or_default());
        rest = &rest[end..];
    }
    targets
}

/// The texts between backquotes in a line.
pub(crate) fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The cells of a table's row; `None` for what is no row, and for the line below the header.
pub(crate) fn row(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    let cells: Vec<&str> = inner.split('|').map(str::trim).collect();
    let rule =
        cells.iter().all(|cell| !cell.is_empty() && cell.bytes().all(|b| b"-:".contains(&b)));
    (!rule).then_some(cells)
}

#[cfg(test)]
mod tests;
