"""CUDA C++ for a host compiler: convert.py SOURCE TARGET [--replace OLD NEW]...

  kernel<<<grid, block, bytes, stream>>>(arguments);   becomes a call of emulation::launch
  __shared__ T name[n];                                a reference to memory of the block
  extern __shared__ ... T name[];                      a pointer to the memory asked for

Everything else is left to the headers beside this file. --replace puts a defect in; OLD has to stand
there once.
"""
import re
import sys


def behind(text, at):
    """The place behind the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    raise SystemExit(f"no end of {text[at:at + 40]!r}")


def parts_of(text):
    """`text` cut at the commas outside of brackets; < and > count where a template's list begins."""
    parts, depth, angles, first = [], 0, 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "<" and re.search(r"\w$", text[:i]):
            angles += 1
        elif c == ">" and angles and text[i - 1] != "-":
            angles -= 1
        elif c == "," and depth == 0 and angles == 0:
            parts.append(text[first:i].strip())
            first = i + 1
    return parts + [text[first:].strip()]


def kernel_before(text, at):
    """Where the kernel's name, with its template arguments, begins."""
    i = len(text[:at].rstrip())
    if text[i - 1] == ">":
        depth = 0
        while True:
            i -= 1
            depth += (text[i] == ">") - (text[i] == "<")
            if depth == 0:
                break
    while re.match(r"[\w:]", text[i - 1]):
        i -= 1
    return i


def convert_launches(text):
    out, done = [], 0
    while (at := text.find("<<<", done)) >= 0:
        begin = kernel_before(text, at)
        name = " ".join(text[begin:at].split())
        end = text.index(">>>", at)
        grid, block, shared, stream = parts_of(text[at + 3:end])
        arguments = text.index("(", end)
        behind_call = behind(text, arguments)
        listed = text[arguments + 1:behind_call - 1]
        # Whose attributes count is only asked where there are any.
        function = "nullptr" if shared == "0" else f"reinterpret_cast<const void*>({name})"
        out += [text[done:begin],
                f'static_cast<void>({stream}), ::amur::emulation::launch("{name}", {grid}, {block}, '
                f"{shared}, {function}, [=](const auto&... a) {{ {name}(a...); }}"
                + (f", {listed})" if listed.strip() else ")")]
        # Lines stay where they are.
        lost = text.count("\n", begin, behind_call) - out[-1].count("\n")
        out.append("\n" * lost)
        done = behind_call
    return "".join(out) + text[done:]


def convert_shared(text):
    text = re.sub(r"extern __shared__[^;]*?((?:unsigned )?\w+) (\w+)\[\];",
                  r"auto* \2 = static_cast<\1*>(::amur::emulation::dynamic_shared());", text)
    return re.sub(
        r"__shared__ ([\w:<>]+) (\w+)((?:\[[^\]]*\])*);",
        r"static const char \2_tag = 0; auto& \2 = *static_cast<std::add_pointer_t<\1\3>>("
        r"::amur::emulation::static_shared(&\2_tag, sizeof(\1\3)));",
        text)


def main():
    source, target, *rest = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        text = file.read()
    for option, old, new in zip(rest[::3], rest[1::3], rest[2::3]):
        if option != "--replace" or text.count(old) != 1:
            raise SystemExit(f"{source}: {old!r} stands there {text.count(old)} times, not once")
        text = text.replace(old, new)
    text = convert_shared(convert_launches(text))
    with open(target, "w", encoding="utf-8") as file:
        file.write(f'#line 1 "{source}"\n{text}')


if __name__ == "__main__":
    main()
